import java.io.IOException;
import java.lang.reflect.Method;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.jar.JarFile;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginBundle;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * A single Elasticsearch 8 or 9 node: {@code RunElasticsearch EMPTY_FOLDER PORT JAR:JAR…}, on 127.0.0.1, until it
 * is ended. The jars are those of its network module, which may not be on the class path.
 */
public class RunElasticsearch {
    private static final String MODULE = "transport-netty4";

    public static void main(String[] arguments) throws Exception {
        LogConfigurator.configureESLogging();
        Path home = Path.of(arguments[0]).toAbsolutePath();
        Path config = Files.createDirectories(home.resolve("config"));
        Path plugins = Files.createDirectories(home.resolve("plugins"));
        Path modules = home.resolve("modules");
        makeModule(modules.resolve(MODULE), arguments[2].split(":"));
        Settings settings = Settings.builder()
            .put("path.home", home.toString())
            .put("cluster.name", "telltale-test")
            .put("node.name", "node-1")
            .put("network.host", "127.0.0.1")
            .put("http.port", arguments[1])
            .put("transport.port", "0")
            .put("discovery.type", "single-node")
            // A full disk of the machine is not what is tested.
            .put("cluster.routing.allocation.disk.threshold_enabled", false)
            .build();
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(settings, Map.of(), config, () -> "node-1");
        PluginsLoader loader = PluginsLoader.createPluginsLoader(
            bundles("loadModulesBundles", modules), bundles("loadPluginsBundles", plugins), Map.of(), false);
        new Node(environment, loader).start();
        Thread.currentThread().join();
    }

    /** As the distribution has it: the jars, and what the module's own says of it. */
    private static void makeModule(Path folder, String[] jars) throws IOException {
        Files.createDirectories(folder);
        Properties descriptor = new Properties();
        for (String jar : jars) {
            Path path = Path.of(jar);
            Files.copy(path, folder.resolve(path.getFileName()));
            try (JarFile file = new JarFile(jar)) {
                var entry = file.getEntry("META-INF/es-plugins/" + MODULE + "/plugin-descriptor.properties");
                if (entry != null) {
                    descriptor.load(file.getInputStream(entry));
                }
            }
        }
        // The server is on the class path, where no Java module can require it.
        descriptor.remove("modulename");
        try (var out = Files.newBufferedWriter(folder.resolve("plugin-descriptor.properties"))) {
            descriptor.store(out, null);
        }
    }

    /** From 9 on, these take the kind of deployment as well. */
    @SuppressWarnings("unchecked")
    private static Set<PluginBundle> bundles(String name, Path folder) throws Exception {
        Method method = Arrays.stream(PluginsLoader.class.getMethods())
            .filter(it -> it.getName().equals(name))
            .findFirst()
            .orElseThrow();
        boolean isOld = method.getParameterCount() == 1;
        return (Set<PluginBundle>) (isOld ? method.invoke(null, folder) : method.invoke(null, folder, false));
    }
}
